<?php
// PHP-FPM behind nginx: the work goes on after fastcgi_finish_request.
$path = $_SERVER['DOCUMENT_URI'];
if ($path === '/upload') {
    header('Connection: close');
    header('Content-Length: ' . 1024 * 1024);
    echo str_repeat('x', 1024 * 1024);
    return;
}
header('Content-Length: 5');
echo 'hello';
fastcgi_finish_request();
set_time_limit(0);
$path === '/park' ? sleep(3600) : usleep(100_000);
